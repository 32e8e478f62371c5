-- Take one trajectory out, as if it had never been kept.
-- KEYS: stats. ARGV: prefix, query, id, overhead. Returns 1 if it was there.
local prefix = ARGV[1]
-- include: drop
local removed, bytes = drop(ARGV[2], ARGV[3])
if removed == 1 then
  redis.call('HINCRBY', KEYS[1], 'size', -1)
  redis.call('HINCRBY', KEYS[1], 'bytes', -(bytes + tonumber(ARGV[4])))
end
return removed
