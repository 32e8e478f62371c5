-- Hand over what was drawn, be it nothing; it doesn't count if another has taken over.
-- KEYS: evaluation (hash), lease (string), drawn (list). ARGV: owner, version, what was drawn, whether that is nothing.
-- Returns 1, or 0 if the lease is not the owner's any more.
local call = redis.call
if call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
if ARGV[4] == '1' then
  -- Redis refuses a script's first write for lack of memory, unless it frees some. This one must come through.
  call('DEL', KEYS[2])
  call('HINCRBY', KEYS[1], 'skipped', 1)
end
-- First of what has samples: it may be refused, and then nothing is over.
call('RPUSH', KEYS[3], ARGV[3])
call('DEL', KEYS[2])
local done = tonumber(call('HGET', KEYS[1], 'taken_parts'))
call('HDEL', KEYS[1], 'taken', 'taken_parts')
if call('HGET', KEYS[1], 'version') == ARGV[2] then
  -- More may have been asked of it since it was begun with.
  local left = bit.band(tonumber(call('HGET', KEYS[1], 'parts')), bit.bnot(done))
  if left == 0 then
    call('HDEL', KEYS[1], 'version', 'wanted', 'parts')
  else
    call('HSET', KEYS[1], 'parts', left)
  end
end
return 1
