-- Take one trajectory out, as if it had never been kept.
-- KEYS: stats. ARGV: prefix, query, id, overhead. Returns 1 if it was there.
local prefix, overhead = ARGV[1], tonumber(ARGV[4])
-- include: drop
local removed, freed = drop(ARGV[2], ARGV[3])
if removed == 1 then
  redis.call('HINCRBY', KEYS[1], 'size', -1)
  redis.call('HINCRBY', KEYS[1], 'bytes', -freed)
end
return removed
