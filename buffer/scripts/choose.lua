-- Choose queries of a shard, each at most once, and take out what has gone stale in them.
-- KEYS: stats (hash). ARGV: prefix, seed, wanted, 'uniform' | 'loss' | 'least_recently_trained', 1 / temperature,
-- oldest adapter version that may be sampled (-1: any), how many stale trajectories to take out at most, overhead.
-- Returns 1 if done, 0 if more is stale than that (ask again), then (query, key) repeated; the smallest keys of all
-- shards are the choice.
local prefix = ARGV[1]
-- include: drop
-- include: race
local stats, wanted, mode, beta = KEYS[1], tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5])
local oldest, limit, overhead = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local VERSION_STEP = 4294967296
math.randomseed(tonumber(ARGV[2]))

local function candidates(n, skip, skipped)
  if mode == 'uniform' then return race(prefix .. 'queries', n, 0, skip, skipped) end
  if mode == 'loss' then return race(prefix .. 'queries:loss', n, beta, skip, skipped) end
  local members, keys = {}, {}
  local found = redis.call('ZRANGE', prefix .. 'queries:trained', 0, n + skipped - 1, 'WITHSCORES')
  for i = 1, #found, 2 do
    if not skip[found[i]] and #members < n then
      members[#members + 1] = found[i]
      keys[#keys + 1] = tonumber(found[i + 1])
    end
  end
  return members, keys
end

-- Whether all that is stale in a query is out, and whether anything is left.
local function expire(query)
  if oldest < 0 then return true, true end
  local stale = redis.call('ZRANGEBYSCORE', prefix .. 'q:' .. query .. ':version', '-inf',
    '(' .. string.format('%.17g', oldest * VERSION_STEP), 'LIMIT', 0, limit)
  local removed, freed = 0, 0
  for _, id in ipairs(stale) do
    local gone, bytes = drop(query, id)
    removed = removed + gone
    freed = freed + gone * (bytes + overhead)
  end
  if removed > 0 then
    redis.call('HINCRBY', stats, 'size', -removed)
    redis.call('HINCRBY', stats, 'bytes', -freed)
    redis.call('HINCRBY', stats, 'expired', removed)
  end
  limit = limit - #stale
  return limit > 0, redis.call('ZSCORE', prefix .. 'queries', query)
end

local answer, seen, n_seen, chosen = { 1 }, {}, 0, 0
while chosen < wanted do
  local members, keys = candidates(wanted - chosen, seen, n_seen)
  if #members == 0 then break end
  for i, query in ipairs(members) do
    seen[query], n_seen = true, n_seen + 1
    local whole, left = expire(query)
    if not whole then return { 0 } end
    if left then
      chosen = chosen + 1
      answer[#answer + 1] = query
      answer[#answer + 1] = string.format('%.17g', keys[i])
    end
  end
end
return answer
