-- Included by others; `prefix` is the shard's, `overhead` what a trajectory takes besides its bytes. Takes one
-- trajectory out of a query. Returns 1 and the bytes that it frees, or 0 twice if it was not there.
local INDEXES = { ':priority', ':order', ':version', ':loss' }

local function drop(query, id)
  local base = prefix .. 'q:' .. query
  local bytes = redis.call('HSTRLEN', base .. ':items', id)
  if redis.call('HDEL', base .. ':items', id) == 0 then return 0, 0 end
  for _, index in ipairs(INDEXES) do redis.call('ZREM', base .. index, id) end
  redis.call('SREM', base .. ':given', id)
  if tonumber(redis.call('ZINCRBY', prefix .. 'queries', -1, query)) <= 0 then
    redis.call('ZREM', prefix .. 'queries', query)
    redis.call('ZREM', prefix .. 'queries:loss', query)
    redis.call('ZREM', prefix .. 'queries:trained', query)
  end
  return 1, bytes + overhead
end
