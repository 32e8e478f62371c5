-- Go on with what one has begun, or give it back for another to begin anew.
-- KEYS: lease (string). ARGV: owner, seconds that the lease lasts from now on (0: given back).
-- Returns 1, or 0 if the lease is not the owner's any more.
local call = redis.call
if call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[2] == '0' then call('DEL', KEYS[1]) else call('EXPIRE', KEYS[1], ARGV[2]) end
return 1
