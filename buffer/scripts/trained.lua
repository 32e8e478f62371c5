-- After a learner step: new priorities of the trajectories it used, and of their queries.
-- KEYS: stats (hash). ARGV: prefix, when (seconds), 1 where trajectories are prioritized by loss, and for each query:
-- query, how many were used, mean priority, {priority, id, ...}. What has been evicted meanwhile is passed over.
local prefix, now, by_loss = ARGV[1], ARGV[2], ARGV[3] == '1'
local groups = cmsgpack.unpack(ARGV[4])
-- include: chunks
local used = 0
for i = 1, #groups, 4 do
  local query, pairs_ = groups[i], groups[i + 3]
  used = used + groups[i + 1]
  redis.call('ZADD', prefix .. 'queries:loss', 'XX', groups[i + 2], query)
  redis.call('ZADD', prefix .. 'queries:trained', 'XX', now, query)
  if by_loss then
    local key = prefix .. 'q:' .. query .. ':loss'
    in_parts(pairs_, function(...) return redis.call('ZADD', key, 'XX', ...) end)
  end
end
return redis.call('HINCRBY', KEYS[1], 'trained', used)
