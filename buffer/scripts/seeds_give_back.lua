-- What an actor has taken and not finished waits again, before all others and in its order.
-- KEYS: seeds (list), the actor's own (list). Returns how many jobs.
local call, n = redis.call, 0
while true do
  local job = call('RPOP', KEYS[2])
  if not job then return n end
  call('LPUSH', KEYS[1], job)
  n = n + 1
end
