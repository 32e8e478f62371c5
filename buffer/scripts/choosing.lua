-- Included by others; `prefix`, `overhead` and `stats` are the shard's. Needs drop and race.
--
-- Chooses `wanted` queries of a shard, each at most once, by `mode`: 'uniform', 'loss' or 'least_recently_trained'.
-- Takes out what scores below `oldest` by version in them (-1: any age goes), `limit` trajectories at most.
-- Returns the queries and their keys, of which the smallest over all shards are the choice; nil if more than `limit`
-- are too old: ask again.
local function choose(wanted, mode, beta, oldest, limit)
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
      '(' .. string.format('%.17g', oldest), 'LIMIT', 0, limit)
    local removed, freed = 0, 0
    for _, id in ipairs(stale) do
      local gone, bytes = drop(query, id)
      removed = removed + gone
      freed = freed + bytes
    end
    if removed > 0 then
      redis.call('HINCRBY', stats, 'size', -removed)
      redis.call('HINCRBY', stats, 'bytes', -freed)
      redis.call('HINCRBY', stats, 'expired', removed)
    end
    limit = limit - #stale
    return limit > 0, redis.call('ZSCORE', prefix .. 'queries', query)
  end

  local queries, keys, seen, n_seen = {}, {}, {}, 0
  while #queries < wanted do
    local members, ranks = candidates(wanted - #queries, seen, n_seen)
    if #members == 0 then break end
    for i, query in ipairs(members) do
      seen[query], n_seen = true, n_seen + 1
      local whole, left = expire(query)
      if not whole then return nil end
      if left then
        queries[#queries + 1] = query
        keys[#keys + 1] = ranks[i]
      end
    end
  end
  return queries, keys
end
