-- Give an actor jobs until it has as many as it asks for; those that it took before and did not finish are among them.
-- KEYS: seeds (list), the actor's own (list). ARGV: how many.
-- Returns the actor's jobs, the oldest first.
local call = redis.call
for _ = call('LLEN', KEYS[2]) + 1, tonumber(ARGV[1]) do
  local job = call('LPOP', KEYS[1])
  if not job then break end
  call('RPUSH', KEYS[2], job)
end
return call('LRANGE', KEYS[2], 0, tonumber(ARGV[1]) - 1)
