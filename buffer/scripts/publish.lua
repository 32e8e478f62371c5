-- Point readers at a version whose content is already complete, never back to an older one, and delete what is kept no
-- longer. Run again, as by a client that lost the answer, it answers the same and changes nothing.
-- KEYS: latest (string), versions (zset), sha256 of every version (hash), pinned versions (set). ARGV: version, its
-- sha256, how many to keep, prefix of the versions' own keys, which share the hash tag.
-- Returns 1, or 0 if this or a newer version stands.
local call = redis.call
local current, version = tonumber(call('GET', KEYS[1]) or '0'), tonumber(ARGV[1])
if version == current and call('HGET', KEYS[3], ARGV[1]) == ARGV[2] then return 1 end
if version <= current then return 0 end
call('SET', KEYS[1], ARGV[1])
call('HSET', KEYS[3], ARGV[1], ARGV[2])
call('ZADD', KEYS[2], version, ARGV[1])
for _, old in ipairs(call('ZRANGE', KEYS[2], 0, -1 - tonumber(ARGV[3]))) do
  call('ZREM', KEYS[2], old)
  -- A pinned one goes when it is unpinned, as it isn't among the versions any more.
  if call('SISMEMBER', KEYS[4], old) == 0 then call('UNLINK', ARGV[4] .. old) end
end
return 1
