-- Set a field of a hash, even where Redis has no memory left: a script's first write is refused then, unless it frees
-- some, and what comes behind one that does is not.
-- KEYS: hash; a key of its slot that nobody uses. ARGV: command (HSET, HSETNX for the first word alone, or HINCRBY), field,
-- value. Returns what the command does.
redis.call('DEL', KEYS[2])
return redis.call(ARGV[1], KEYS[1], ARGV[2], ARGV[3])
