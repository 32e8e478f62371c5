-- Included by others. Random draws from a sorted set whose scores are log-weights, O(log n) each, exact.
--
-- A race: every member arrives after an exponential time whose rate is its weight exp(beta * score); the first k to
-- arrive are a draw of k without replacement. The best members run one by one. The rest run in ranges of ranks as one
-- process whose rate bounds theirs, and an arrival counts with probability weight / bound. `beta` is 1 / temperature;
-- 0 makes all weights equal. Times are logarithms, and all is relative to the head's lowest: however far the best are
-- above, the rest keep their weights.
local MIN_HEAD, MIN_SLACK = 8, 0.1
local log, exp, random, call, huge = math.log, math.exp, math.random, redis.call, math.huge

local function uniform()
  local u = random()
  while u <= 0 do u = random() end
  return u
end

local function advantage(beta, score, of)
  return beta == 0 and 0 or beta * (score - of)
end

-- Relative to that of a score.
local function weight(beta, score, of) return exp(advantage(beta, score, of)) end

local function earlier(a, b)
  -- Of scores so far apart that nothing else is left of a time, chance decides among equals.
  if a.log_time ~= b.log_time then return a.log_time < b.log_time end
  return a.delay < b.delay
end

-- Ranges {first rank, one past the last, bound of the weights} of the members from rank `first` on, none of which
-- scores above `score`, and the sum of count * bound. Weights, and the `mass` before them, are relative to `of`. A
-- range is as long as all before it together, whose members weigh at least its bound each: so the bounds add up to no
-- more than the true sum, and at least every second try succeeds. The last range is longer where it weighs so little
-- that `wanted` draws hardly ever look at it.
local function tail_ranges(key, first, n, score, beta, of, mass, wanted)
  local ranges, total, rank = {}, 0, first
  local slack = math.max(MIN_SLACK, 2 / wanted)
  while rank < n do
    local bound, last = weight(beta, score, of), n
    if beta > 0 and (n - rank) * bound > slack * (mass + total) then last = math.min(n, 2 * rank) end
    ranges[#ranges + 1] = { rank, last, bound }
    total = total + (last - rank) * bound
    rank = last
    if rank < n then score = tonumber(call('ZREVRANGE', key, rank, rank, 'WITHSCORES')[2]) end
  end
  return ranges, total
end

-- A member of the ranges with probability proportional to its weight, or nil if this try was rejected.
local function try_tail(key, ranges, total, beta, of)
  local mark = random() * total
  local range
  for i = 1, #ranges do
    range = ranges[i]
    mark = mark - (range[2] - range[1]) * range[3]
    if mark < 0 then break end
  end
  local rank = random(range[1], range[2] - 1)
  local found = call('ZREVRANGE', key, rank, rank, 'WITHSCORES')
  if beta == 0 or random() * range[3] < weight(beta, tonumber(found[2]), of) then return found[1] end
  return nil
end

-- Up to `wanted` different members that are not in `skip` (a set of `skipped` members), and each one's log arrival
-- time, comparable between sorted sets.
local function race(key, wanted, beta, skip, skipped)
  local n = call('ZCARD', key)
  if n == 0 or wanted <= 0 then return {}, {} end
  -- So many that the head alone can fill the draw: the tail then never has to be searched to its end.
  local n_head = math.max(MIN_HEAD, 2 * wanted + skipped)
  if n <= 2 * n_head then n_head = n end
  local head = call('ZREVRANGE', key, 0, n_head - 1, 'WITHSCORES')
  local last = tonumber(head[#head])
  -- The mass is what is still running after any `wanted` have arrived.
  local runners, mass = {}, 0
  for i = 1, #head, 2 do
    local member = head[i]
    if not skip[member] then
      local score, delay = tonumber(head[i + 1]), log(-log(uniform()))
      runners[#runners + 1] = { member = member, delay = delay, log_time = delay - advantage(beta, score, last) }
      if #runners > wanted then mass = mass + weight(beta, score, last) end
    end
  end
  table.sort(runners, earlier)
  local ranges, total = tail_ranges(key, n_head, n, last, beta, last, mass, wanted)
  local shift = beta == 0 and 0 or beta * last
  local members, times, arrived = {}, {}, {}
  local next_runner, time = 1, 0
  local function arrive(member, log_time)
    arrived[member] = true
    members[#members + 1] = member
    times[#times + 1] = log_time - shift
  end
  while #members < wanted do
    local runner = runners[next_runner]
    local log_time = huge
    if total > 0 then
      time = time - log(uniform()) / total
      log_time = log(time)
    end
    while runner and runner.log_time <= log_time and #members < wanted do
      arrive(runner.member, runner.log_time)
      next_runner = next_runner + 1
      runner = runners[next_runner]
    end
    if not runner and total == 0 then break end
    if #members < wanted and total > 0 then
      local member = try_tail(key, ranges, total, beta, last)
      if member and not arrived[member] and not skip[member] then arrive(member, log_time) end
    end
  end
  return members, times
end

-- `wanted` independent draws, with replacement.
local function draws(key, wanted, beta)
  local n = call('ZCARD', key)
  if n == 0 then return {} end
  local n_head = n <= 2 * MIN_HEAD and n or MIN_HEAD
  local head = call('ZREVRANGE', key, 0, n_head - 1, 'WITHSCORES')
  local top = tonumber(head[2])
  local ends, mass = {}, 0
  for i = 1, #head, 2 do
    mass = mass + weight(beta, tonumber(head[i + 1]), top)
    ends[#ends + 1] = mass
  end
  local last = tonumber(head[#head])
  local ranges, total = tail_ranges(key, n_head, n, last, beta, top, mass, wanted)
  local members = {}
  while #members < wanted do
    local mark = random() * (mass + total)
    if mark < mass or total == 0 then
      local i = 1
      while i < #ends and ends[i] <= mark do i = i + 1 end
      members[#members + 1] = head[2 * i - 1]
    else
      members[#members + 1] = try_tail(key, ranges, total, beta, top)
    end
  end
  return members
end
