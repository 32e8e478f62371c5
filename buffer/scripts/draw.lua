-- Draw trajectories of chosen queries: the newest of each, then a replayed rest.
-- KEYS: stats (hash, for its hash tag). ARGV: prefix, seed, trajectories of each, newest among them, ':priority' |
-- ':loss' | ':order' (uniform), 1 / temperature, 1 for replacement, 1 for payloads, queries.
-- Returns (query, ids in one string, payloads) repeated. The same buffer and seed give the same answer.
local prefix = ARGV[1]
-- include: race
local per_query, n_fresh, index, beta = tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5], tonumber(ARGV[6])
local replacement, payloads = ARGV[7] == '1', ARGV[8] == '1'
local CHUNK = 4000
math.randomseed(tonumber(ARGV[2]))

local function extend(list, more)
  for _, value in ipairs(more) do list[#list + 1] = value end
end

local function values(key, ids)
  if #ids <= CHUNK then return redis.call('HMGET', key, unpack(ids)) end
  local found = {}
  for i = 1, #ids, CHUNK do
    extend(found, redis.call('HMGET', key, unpack(ids, i, math.min(i + CHUNK - 1, #ids))))
  end
  return found
end

local answer = {}
for _, query in ipairs(cmsgpack.unpack(ARGV[9])) do
  local base = prefix .. 'q:' .. query
  local ids, fresh = {}, {}
  if n_fresh > 0 then ids = redis.call('ZREVRANGE', base .. ':order', 0, n_fresh - 1) end
  for _, id in ipairs(ids) do fresh[id] = true end
  if replacement then
    if per_query > #ids then extend(ids, draws(base .. index, per_query - #ids, beta)) end
  else
    extend(ids, (race(base .. index, per_query - #ids, beta, fresh, #ids)))
  end
  if #ids > 0 then
    answer[#answer + 1] = query
    answer[#answer + 1] = table.concat(ids)
    answer[#answer + 1] = payloads and values(base .. ':items', ids) or {}
  end
end
return answer
