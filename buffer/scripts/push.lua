-- Insert trajectories: drop exact duplicates (the newer behaviour stays), then evict down to all bounds.
-- KEYS: stats (hash). All other keys share its hash tag through the prefix.
-- ARGV: prefix; settings; groups, two each: query, {id, log reward, version score, payload, ...}; and for
-- near-duplicates the sequence number that the query's newest must still have (0: none), and the ids that the group
-- replaces (else empty).
-- Returns added, duplicates, evicted, refused; or -1 if the query has changed since the sequence number was read.
local prefix = ARGV[1]
local settings, groups = cmsgpack.unpack(ARGV[2]), cmsgpack.unpack(ARGV[3])
local per_query, capacity, max_bytes, overhead = settings[1], settings[2], settings[3], settings[4]
local policy, from_actor, by_version, by_loss = settings[5], settings[6], settings[7], settings[8]
local version_step, never_stale = settings[9], settings[10]
-- include: drop
-- include: chunks
local stats, queries = KEYS[1], prefix .. 'queries'
local call = redis.call
local NAMES = { 'size', 'bytes', 'sequence', 'pushed', 'seeded', 'added', 'duplicates', 'evicted', 'refused' }
local VICTIM = { oldest = ':order', stalest = ':version' }
local LOOK = 100

local counts = {}
for i, value in ipairs(call('HMGET', stats, unpack(NAMES))) do counts[NAMES[i]] = tonumber(value or 0) or 0 end
local before = { counts.added, counts.duplicates, counts.evicted, counts.refused }

local function remove(query, id)
  local removed, freed = drop(query, id)
  counts.size = counts.size - removed
  counts.bytes = counts.bytes - freed
  return removed
end

-- How far each query was searched for its lowest rewards, so that none is passed twice.
local searches = {}

-- What has the lowest reward, but for the newer half, as that is when the search begins: what is sampled now must be
-- trained on, however bad it is.
local function lowest(query, base)
  local search = searches[query]
  if not search then
    local count = call('ZCARD', base .. ':order')
    local older = count - math.floor(math.min(per_query, count) / 2)
    local last = call('ZRANGE', base .. ':order', older - 1, older - 1, 'WITHSCORES')[2]
    search = { last = tonumber(last), from = 0, found = {}, at = 0 }
    searches[query] = search
  end
  while search.at == #search.found do
    local ids, found = call('ZRANGE', base .. ':priority', search.from, search.from + LOOK - 1), {}
    if #ids == 0 then
      -- The older half is gone.
      searches[query] = nil
      return lowest(query, base)
    end
    for i, order in ipairs(call('ZMSCORE', base .. ':order', unpack(ids))) do
      if tonumber(order) <= search.last then found[#found + 1] = ids[i] end
    end
    -- Those that are found will be gone before it goes on.
    search.from, search.found, search.at = search.from + #ids - #found, found, 0
  end
  search.at = search.at + 1
  return search.found[search.at]
end

local function evict(query)
  local base = prefix .. 'q:' .. query
  local victim
  if policy == 'lowest_reward' then
    victim = lowest(query, base)
  else
    -- An index made for another policy may not know all yet.
    victim = call('ZRANGE', base .. VICTIM[policy], 0, 0)[1] or call('ZRANGE', base .. ':priority', 0, 0)[1]
  end
  counts.evicted = counts.evicted + remove(query, victim)
end

local function fullest() return call('ZREVRANGE', queries, 0, 0)[1] end

local function store(command, key, values)
  in_parts(values, function(...) return call(command, key, ...) end)
end

-- Which of the ids are stored, by place.
local function stored(base, ids)
  return in_parts(ids, function(...) return call('ZMSCORE', base .. ':order', ...) end)
end

-- The last of each id, and which of them no adapter sampled at least once; what is too large on its own is refused.
local function admitted(items)
  local last, places, ids, gifts = {}, {}, {}, {}
  for i = 1, #items, 4 do
    counts.sequence = counts.sequence + 1
    if #items[i + 3] + overhead > max_bytes then
      counts.refused = counts.refused + 1
    else
      if last[items[i]] then
        counts.duplicates = counts.duplicates + 1
      else
        ids[#ids + 1] = items[i]
      end
      last[items[i]], places[items[i]] = i, counts.sequence
      gifts[items[i]] = gifts[items[i]] or items[i + 2] >= never_stale
    end
  end
  return ids, last, places, gifts
end

local function insert(query, items)
  local base = prefix .. 'q:' .. query
  local ids, last, places, gifts = admitted(items)
  if #ids == 0 then return end
  local known = stored(base, ids)
  searches[query] = nil
  -- What no adapter sampled stays so when one samples it too.
  local known_given = in_parts(ids, function(...) return call('SMISMEMBER', base .. ':given', ...) end)
  local payloads, priorities, orders, versions, new, given = {}, {}, {}, {}, {}, {}
  for i, id in ipairs(ids) do
    local at, n = last[id], 2 * i
    local payload = items[at + 3]
    payloads[n - 1], payloads[n] = id, payload
    priorities[n - 1], priorities[n] = items[at + 1], id
    orders[n - 1], orders[n] = places[id], id
    -- Among equal versions, the order of arrival decides.
    versions[n - 1], versions[n] = items[at + 2] + places[id] % version_step, id
    if gifts[id] or known_given[i] == 1 then
      given[#given + 1] = id
      versions[n - 1] = never_stale + places[id] % version_step
    end
    if known[i] then
      counts.duplicates = counts.duplicates + 1
      counts.bytes = counts.bytes + #payload - call('HSTRLEN', base .. ':items', id)
    else
      new[#new + 1] = id
      counts.bytes = counts.bytes + #payload + overhead
    end
  end
  store('HSET', base .. ':items', payloads)
  store('ZADD', base .. ':priority', priorities)
  store('ZADD', base .. ':order', orders)
  if by_version == 1 then store('ZADD', base .. ':version', versions) end
  if #given > 0 then store('SADD', base .. ':given', given) end
  if #new == 0 then return end
  counts.added = counts.added + #new
  counts.size = counts.size + #new
  if by_loss == 1 then
    -- Never trained on: as urgent as the most urgent.
    local top = call('ZREVRANGE', base .. ':loss', 0, 0, 'WITHSCORES')[2] or 0
    local urgent = {}
    for i, id in ipairs(new) do urgent[2 * i - 1], urgent[2 * i] = top, id end
    store('ZADD', base .. ':loss', urgent)
  end
  local count = tonumber(call('ZINCRBY', queries, #new, query))
  if count == #new then
    local top = call('ZREVRANGE', prefix .. 'queries:loss', 0, 0, 'WITHSCORES')[2]
    call('ZADD', prefix .. 'queries:loss', 'NX', top or 0, query)
    call('ZADD', prefix .. 'queries:trained', 'NX', 0, query)
  end
  for _ = per_query + 1, count do evict(query) end
end

if ARGV[4] ~= '' then
  local newest = call('ZREVRANGE', prefix .. 'q:' .. groups[1] .. ':order', 0, 0, 'WITHSCORES')[2]
  if tonumber(newest or 0) ~= tonumber(ARGV[4]) then return { -1 } end
  for _, id in ipairs(cmsgpack.unpack(ARGV[5])) do counts.evicted = counts.evicted + remove(groups[1], id) end
end

local origin = from_actor == 1 and 'pushed' or 'seeded'
for i = 1, #groups, 2 do
  counts[origin] = counts[origin] + #groups[i + 1] / 4
  insert(groups[i], groups[i + 1])
  while counts.size > capacity or counts.bytes > max_bytes do evict(fullest()) end
end

local changes = {}
for i, name in ipairs(NAMES) do changes[2 * i - 1], changes[2 * i] = name, counts[name] end
call('HSET', stats, unpack(changes))
return { counts.added - before[1], counts.duplicates - before[2], counts.evicted - before[3],
  counts.refused - before[4] }
