-- Begin with what is to be evaluated, if nobody else is at it.
-- KEYS: evaluation (hash), lease (string). ARGV: owner, seconds that the lease lasts.
-- Returns the request, or nothing.
local call = redis.call
local version = call('HGET', KEYS[1], 'version')
if not version or not call('SET', KEYS[2], ARGV[1], 'NX', 'EX', ARGV[2]) then return false end
local before = call('HGET', KEYS[1], 'taken')
-- Whoever had begun with another has died, and a newer one is wanted by now.
if before and before ~= version then call('HINCRBY', KEYS[1], 'skipped', 1) end
call('HSET', KEYS[1], 'taken', version)
return call('HGET', KEYS[1], 'wanted')
