-- Begin with what is to be looked at, if nobody else is at it. An owner that has the lease lost the answer, and gets it
-- again.
-- KEYS: evaluation (hash), lease (string). ARGV: owner, seconds that the lease lasts.
-- Returns the request and its parts (bits), or nothing.
local call = redis.call
local version = call('HGET', KEYS[1], 'version')
if not version then return false end
if not call('SET', KEYS[2], ARGV[1], 'NX', 'EX', ARGV[2]) and call('GET', KEYS[2]) ~= ARGV[1] then return false end
local parts = tonumber(call('HGET', KEYS[1], 'parts'))
local before = call('HGET', KEYS[1], 'taken')
if before and before ~= version then
  -- Whoever had begun with another has died, and a newer one is wanted by now: also for what that one was.
  parts = bit.bor(parts, tonumber(call('HGET', KEYS[1], 'taken_parts')))
  call('HINCRBY', KEYS[1], 'skipped', 1)
end
call('HSET', KEYS[1], 'taken', version, 'parts', parts, 'taken_parts', parts)
return {call('HGET', KEYS[1], 'wanted'), parts}
