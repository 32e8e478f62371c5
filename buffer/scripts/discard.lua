-- Take one trajectory out, as if it had never been kept.
-- KEYS: queries, stats. ARGV: prefix, query, id. Returns 1 if it was there.
local base = ARGV[1] .. ARGV[2]
if redis.call('HDEL', base .. ':items', ARGV[3]) == 0 then return 0 end
redis.call('ZREM', base .. ':priority', ARGV[3])
redis.call('ZREM', base .. ':order', ARGV[3])
if tonumber(redis.call('ZINCRBY', KEYS[1], -1, ARGV[2])) == 0 then redis.call('ZREM', KEYS[1], ARGV[2]) end
redis.call('HINCRBY', KEYS[2], 'size', -1)
return 1
