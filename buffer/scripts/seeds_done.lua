-- An actor's jobs are done. Those that it doesn't have any more count for nothing: the answer was lost and this comes
-- again, or they were given back.
-- KEYS: the actor's own (list), how many are left (string). ARGV: jobs.
local done = 0
for _, job in ipairs(ARGV) do done = done + redis.call('LREM', KEYS[1], 1, job) end
if done > 0 then redis.call('DECRBY', KEYS[2], done) end
