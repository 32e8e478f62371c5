-- Included by others; `prefix` is the shard's. Needs race and chunks.
--
-- Draws trajectories of each query: its `n_fresh` newest, then a rest of `per_query` − `n_fresh` by an index.
-- Returns (query, ids in one string, payloads) repeated.
local function extend(list, more)
  for _, value in ipairs(more) do list[#list + 1] = value end
end

local function values(key, ids)
  return in_parts(ids, function(...) return call('HMGET', key, ...) end)
end

local function draw(queries, per_query, n_fresh, index, beta, replacement, payloads)
  local answer = {}
  for _, query in ipairs(queries) do
    local base = prefix .. 'q:' .. query
    local ids, fresh = {}, {}
    if n_fresh > 0 then ids = call('ZREVRANGE', base .. ':order', 0, n_fresh - 1) end
    for _, id in ipairs(ids) do fresh[id] = true end
    if replacement then
      if per_query > #ids then extend(ids, draws(base .. index, per_query - #ids, beta)) end
    else
      extend(ids, (race(base .. index, per_query - #ids, beta, fresh, #ids)))
    end
    if #ids > 0 then
      answer[#answer + 1] = query
      answer[#answer + 1] = table.concat(ids)
      answer[#answer + 1] = payloads and values(base .. ':items', ids) or {}
    end
  end
  return answer
end
