-- Candidates of one shard for the queries of a sample, where there are several shards.
-- KEYS: stats (hash). ARGV: prefix, seed, wanted, mode, 1 / temperature, oldest version, limit, overhead (see choosing).
-- Returns nothing if it must be asked again, else a 1 and (query, key) repeated.
local prefix, overhead, stats = ARGV[1], tonumber(ARGV[8]), KEYS[1]
-- include: drop
-- include: race
-- include: choosing
math.randomseed(tonumber(ARGV[2]))
local queries, keys = choose(tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]))
if not queries then return {} end
local answer = { 1 }
for i, query in ipairs(queries) do
  answer[#answer + 1] = query
  answer[#answer + 1] = string.format('%.17g', keys[i])
end
return answer
