-- Say which adapter version is to be looked at; a newer one takes the place of one that nobody has begun with, and is
-- looked at for what that was wanted for as well.
-- KEYS: evaluation (hash). ARGV: version, request, parts (bits).
-- Returns the version whose place it takes, or 0.
local call = redis.call
local old = call('HGET', KEYS[1], 'version')
local parts = tonumber(ARGV[3])
local waits = false
if old then
  local begun = 0
  if old == call('HGET', KEYS[1], 'taken') then begun = tonumber(call('HGET', KEYS[1], 'taken_parts')) end
  -- What was asked of it after somebody had begun goes over to the newer one too.
  parts = bit.bor(parts, bit.band(tonumber(call('HGET', KEYS[1], 'parts')), bit.bnot(begun)))
  if old == ARGV[1] then parts = bit.bor(parts, begun) end
  waits = begun == 0 and old ~= ARGV[1]
end
call('HSET', KEYS[1], 'version', ARGV[1], 'wanted', ARGV[2], 'parts', parts)
if not waits then return 0 end
call('HINCRBY', KEYS[1], 'skipped', 1)
return tonumber(old)
