-- Insert trajectories of any queries: drop exact duplicates (the newer behaviour stays), then evict to both bounds.
-- KEYS: queries (zset query -> count), stats (hash). All other keys share their hash tag through the prefix.
-- ARGV: prefix, capacity per query, capacity, eviction policy, then (query, id, log reward, payload) repeated.
-- Returns added, duplicates, evicted.
local queries, stats = KEYS[1], KEYS[2]
local prefix, per_query, capacity, policy = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local added, duplicates, evicted = 0, 0, 0
local size = tonumber(redis.call('HGET', stats, 'size') or '0')

local function evict(query)
  local base = prefix .. query
  local order = policy == 'oldest' and ':order' or ':priority'
  local victim = redis.call('ZRANGE', base .. order, 0, 0)[1]
  redis.call('HDEL', base .. ':items', victim)
  redis.call('ZREM', base .. ':priority', victim)
  redis.call('ZREM', base .. ':order', victim)
  if tonumber(redis.call('ZINCRBY', queries, -1, query)) == 0 then redis.call('ZREM', queries, query) end
  size = size - 1
  evicted = evicted + 1
end

for i = 5, #ARGV, 4 do
  local query, id, priority, payload = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  local base = prefix .. query
  local sequence = redis.call('HINCRBY', stats, 'pushed', 1)
  local is_new = redis.call('HSET', base .. ':items', id, payload)
  redis.call('ZADD', base .. ':priority', priority, id)
  redis.call('ZADD', base .. ':order', sequence, id)
  if is_new == 1 then
    added = added + 1
    size = size + 1
    local count = tonumber(redis.call('ZINCRBY', queries, 1, query))
    if count > per_query then evict(query) end
    if size > capacity then evict(redis.call('ZREVRANGE', queries, 0, 0)[1]) end
  else
    duplicates = duplicates + 1
  end
end

redis.call('HSET', stats, 'size', size)
redis.call('HINCRBY', stats, 'added', added)
redis.call('HINCRBY', stats, 'duplicates', duplicates)
redis.call('HINCRBY', stats, 'evicted', evicted)
return { added, duplicates, evicted }
