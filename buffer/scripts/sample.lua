-- Draw queries uniformly without replacement, then trajectories of each: its newest, and a replayed rest.
-- KEYS: queries (zset query -> count). All other keys share its hash tag through the prefix.
-- ARGV: prefix, seed, queries wanted, trajectories of each, newest among them, 'reward' or 'uniform', temperature.
-- Returns (query, id, payload) repeated. The same buffer and seed give the same answer.
local queries = KEYS[1]
local prefix, seed = ARGV[1], tonumber(ARGV[2])
local n_queries, per_query, n_fresh = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local by_reward, temperature = ARGV[6] == 'reward', tonumber(ARGV[7])
math.randomseed(seed)

local function gumbel()
  local u = math.random()
  while u <= 0 do u = math.random() end
  return -math.log(-math.log(u))
end

-- Floyd's algorithm: distinct ranks in as many draws as are wanted.
local function distinct_ranks(total, wanted)
  local chosen, list = {}, {}
  for j = total - wanted, total - 1 do
    local rank = math.random(0, j)
    if chosen[rank] then rank = j end
    chosen[rank] = true
    list[#list + 1] = rank
  end
  return list
end

-- Gumbel top-k: a sample without replacement with probabilities proportional to exp(log reward / temperature).
local function replay(base, taken, wanted)
  local scored = redis.call('ZRANGE', base .. ':priority', 0, -1, 'WITHSCORES')
  local keyed = {}
  for i = 1, #scored, 2 do
    if not taken[scored[i]] then
      local log_weight = by_reward and tonumber(scored[i + 1]) / temperature or 0
      keyed[#keyed + 1] = { log_weight + gumbel(), scored[i] }
    end
  end
  table.sort(keyed, function(a, b) return a[1] > b[1] end)
  local ids = {}
  for i = 1, math.min(wanted, #keyed) do ids[i] = keyed[i][2] end
  return ids
end

local answer = {}
local total = redis.call('ZCARD', queries)
for _, rank in ipairs(distinct_ranks(total, math.min(n_queries, total))) do
  local query = redis.call('ZRANGE', queries, rank, rank)[1]
  local base = prefix .. query
  local ids, taken = {}, {}
  if n_fresh > 0 then ids = redis.call('ZREVRANGE', base .. ':order', 0, n_fresh - 1) end
  for _, id in ipairs(ids) do taken[id] = true end
  if per_query > #ids then
    for _, id in ipairs(replay(base, taken, per_query - #ids)) do ids[#ids + 1] = id end
  end
  local payloads = redis.call('HMGET', base .. ':items', unpack(ids))
  for i, id in ipairs(ids) do
    answer[#answer + 1] = query
    answer[#answer + 1] = id
    answer[#answer + 1] = payloads[i]
  end
end
return answer
