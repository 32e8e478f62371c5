-- Insert trajectories: drop exact duplicates (the newer behaviour stays), then evict down to all bounds.
-- KEYS: stats (hash). All other keys share its hash tag through the prefix.
-- ARGV: prefix; settings; items, five each: query, id, log reward, adapter version, payload; and for near-duplicates
-- the sequence number that the query's newest must still have (0: none), and the ids that the items replace (else empty).
-- Returns added, duplicates, evicted, refused; or -1 if the query has changed since the sequence number was read.
local prefix = ARGV[1]
-- include: drop
local settings, items = cmsgpack.unpack(ARGV[2]), cmsgpack.unpack(ARGV[3])
local per_query, capacity, max_bytes, overhead = settings[1], settings[2], settings[3], settings[4]
local policy, from_actor, by_version, by_loss = settings[5], settings[6], settings[7], settings[8]
local stats, queries = KEYS[1], prefix .. 'queries'
local NAMES = { 'size', 'bytes', 'sequence', 'pushed', 'seeded', 'added', 'duplicates', 'evicted', 'refused' }
local VICTIM = { lowest_reward = ':priority', oldest = ':order', stalest = ':version' }
-- A version and, among equals, the order of arrival, in one exactly represented number.
local VERSION_STEP, ARRIVALS = 4294967296, 4294967296

local counts = {}
for i, value in ipairs(redis.call('HMGET', stats, unpack(NAMES))) do counts[NAMES[i]] = tonumber(value or 0) or 0 end
local before = { duplicates = counts.duplicates, added = counts.added, evicted = counts.evicted,
  refused = counts.refused }

local function remove(query, id)
  local removed, bytes = drop(query, id)
  counts.size = counts.size - removed
  counts.bytes = counts.bytes - removed * (bytes + overhead)
  return removed
end

local function evict(query)
  local base = prefix .. 'q:' .. query
  local victim = redis.call('ZRANGE', base .. VICTIM[policy], 0, 0)[1]
  -- An index made for another policy may not know all yet.
  if not victim then victim = redis.call('ZRANGE', base .. ':priority', 0, 0)[1] end
  counts.evicted = counts.evicted + remove(query, victim)
end

local function fullest() return redis.call('ZREVRANGE', queries, 0, 0)[1] end

if ARGV[4] ~= '' then
  local newest = redis.call('ZREVRANGE', prefix .. 'q:' .. items[1] .. ':order', 0, 0, 'WITHSCORES')[2]
  if tonumber(newest or 0) ~= tonumber(ARGV[4]) then return { -1 } end
  for _, id in ipairs(cmsgpack.unpack(ARGV[5])) do counts.evicted = counts.evicted + remove(items[1], id) end
end

for i = 1, #items, 5 do
  local query, id, priority, version, payload = items[i], items[i + 1], items[i + 2], items[i + 3], items[i + 4]
  local base = prefix .. 'q:' .. query
  local bytes = #payload + overhead
  counts.sequence = counts.sequence + 1
  local origin = from_actor == 1 and 'pushed' or 'seeded'
  counts[origin] = counts[origin] + 1
  if bytes > max_bytes then
    counts.refused = counts.refused + 1
  else
    local known = 0
    if redis.call('HSETNX', base .. ':items', id, payload) == 0 then
      known = redis.call('HSTRLEN', base .. ':items', id)
      redis.call('HSET', base .. ':items', id, payload)
    end
    redis.call('ZADD', base .. ':priority', priority, id)
    redis.call('ZADD', base .. ':order', counts.sequence, id)
    if by_version == 1 then
      redis.call('ZADD', base .. ':version', version * VERSION_STEP + counts.sequence % ARRIVALS, id)
    end
    if known > 0 then
      counts.duplicates = counts.duplicates + 1
      counts.bytes = counts.bytes + #payload - known
    else
      counts.added = counts.added + 1
      counts.size = counts.size + 1
      counts.bytes = counts.bytes + bytes
      if by_loss == 1 then
        -- Never trained on: as urgent as the most urgent.
        local top = redis.call('ZREVRANGE', base .. ':loss', 0, 0, 'WITHSCORES')[2]
        redis.call('ZADD', base .. ':loss', top or 0, id)
      end
      local count = tonumber(redis.call('ZINCRBY', queries, 1, query))
      if count == 1 then
        local top = redis.call('ZREVRANGE', prefix .. 'queries:loss', 0, 0, 'WITHSCORES')[2]
        redis.call('ZADD', prefix .. 'queries:loss', 'NX', top or 0, query)
        redis.call('ZADD', prefix .. 'queries:trained', 'NX', 0, query)
      end
      if count > per_query then evict(query) end
      if counts.size > capacity then evict(fullest()) end
    end
    while counts.bytes > max_bytes do evict(fullest()) end
  end
end

local changes = {}
for _, name in ipairs(NAMES) do
  changes[#changes + 1] = name
  changes[#changes + 1] = counts[name]
end
redis.call('HSET', stats, unpack(changes))
return { counts.added - before.added, counts.duplicates - before.duplicates, counts.evicted - before.evicted,
  counts.refused - before.refused }
