-- Included by others. Lua passes no more than 8,000 values on, so a long command goes in parts.
local PART = 4000

-- `send` gets all values, a part at a time; the lists that it answers with, as one.
local function in_parts(values, send)
  if #values <= PART then return send(unpack(values)) end
  local found = {}
  for i = 1, #values, PART do
    local answer = send(unpack(values, i, math.min(i + PART - 1, #values)))
    if type(answer) == 'table' then
      for _, value in ipairs(answer) do found[#found + 1] = value end
    end
  end
  return found
end
