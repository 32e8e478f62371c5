-- Say which adapter version is to be evaluated; a newer one takes the place of one that nobody has begun with.
-- KEYS: evaluation (hash). ARGV: version, request.
-- Returns the version whose place it takes, or 0.
local call = redis.call
local old = call('HGET', KEYS[1], 'version')
call('HSET', KEYS[1], 'version', ARGV[1], 'wanted', ARGV[2])
if not old or old == ARGV[1] or old == call('HGET', KEYS[1], 'taken') then return 0 end
call('HINCRBY', KEYS[1], 'skipped', 1)
return tonumber(old)
