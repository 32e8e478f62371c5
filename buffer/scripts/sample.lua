-- A whole sample, where there is one shard: choose queries, then draw trajectories of each.
-- KEYS: stats (hash). ARGV: prefix, then as `choose` from its seed on, then as `draw` from its trajectories of each on.
-- Returns nothing if it must be asked again, else a 1 and what `draw` returns.
local prefix, overhead, stats = ARGV[1], tonumber(ARGV[8]), KEYS[1]
-- include: drop
-- include: race
-- include: choosing
-- include: chunks
-- include: drawing
math.randomseed(tonumber(ARGV[2]))
local queries = choose(tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]))
if not queries then return {} end
local answer = draw(queries, tonumber(ARGV[9]), tonumber(ARGV[10]), ARGV[11], tonumber(ARGV[12]), ARGV[13] == '1',
  ARGV[14] == '1')
table.insert(answer, 1, 1)
return answer
