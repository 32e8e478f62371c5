-- Point readers at a version whose content is already complete; never back to an older one.
-- KEYS: latest (string), versions (zset). ARGV: version, how many to keep.
-- Returns 1 and the versions that are no longer kept, or 0 if a newer version stands.
local current = tonumber(redis.call('GET', KEYS[1]) or '0')
local version = tonumber(ARGV[1])
if version <= current then return { 0 } end
redis.call('SET', KEYS[1], ARGV[1])
redis.call('ZADD', KEYS[2], version, ARGV[1])
local expired = redis.call('ZRANGE', KEYS[2], 0, -1 - tonumber(ARGV[2]))
for _, old in ipairs(expired) do redis.call('ZREM', KEYS[2], old) end
return { 1, expired }
