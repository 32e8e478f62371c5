-- Draw trajectories of queries that were chosen before, where there are several shards.
-- KEYS: stats (hash, for its hash tag). ARGV: prefix, seed, queries, trajectories of each, newest among them,
-- ':priority' | ':loss' | ':order' (uniform), 1 / temperature, 1 for replacement, 1 for payloads.
-- Returns (query, ids in one string, payloads) repeated.
local prefix = ARGV[1]
-- include: race
-- include: chunks
-- include: drawing
math.randomseed(tonumber(ARGV[2]))
return draw(cmsgpack.unpack(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6], tonumber(ARGV[7]),
  ARGV[8] == '1', ARGV[9] == '1')
