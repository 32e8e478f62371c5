-- Hand over what was drawn, or say that nothing can be; neither counts if another has taken over.
-- KEYS: evaluation (hash), lease (string), drawn (list). ARGV: owner, version, what was drawn (empty: nothing can be).
-- Returns 1, or 0 if the lease is not the owner's any more.
local call = redis.call
if call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
if ARGV[3] ~= '' then
  -- First, as it may be refused for lack of memory.
  call('RPUSH', KEYS[3], ARGV[3])
else
  call('HINCRBY', KEYS[1], 'skipped', 1)
end
call('DEL', KEYS[2])
call('HDEL', KEYS[1], 'taken')
if call('HGET', KEYS[1], 'version') == ARGV[2] then call('HDEL', KEYS[1], 'version', 'wanted') end
return 1
