-- Add what one process counted in some seconds to what all have counted in them.
-- KEYS: 1 queue  2 seconds
-- ARGV: 1 seconds for which the counts are kept  2 slots  3… unix second, its counts, JSON: name -> number; …
local waiting, clock = redis.call('LLEN', KEYS[1]), now()
for i = 3, #ARGV, 2 do
  local second, given = tonumber(ARGV[i]), cjson.decode(ARGV[i + 1])
  local slot = second % ARGV[2]
  local is_json, sums = pcall(cjson.decode, redis.call('HGET', KEYS[2], slot) or '')
  local at = is_json and type(sums) == 'table' and tonumber(sums.at) or 0
  -- A second that is yet to come was told of before Redis's clock was set back.
  if at < second or at > second and at > clock then sums, at = {at = second}, second end
  if at == second then  -- else they come too late
    for name, count in pairs(given) do
      sums[name] = (tonumber(sums[name]) or 0) + count
    end
    sums.waiting = waiting
    redis.pcall('HSET', KEYS[2], slot, cjson.encode(sums))  -- a Redis that is out of memory has no room for them
  end
end
redis.call('EXPIRE', KEYS[2], ARGV[1])
