-- Renew the leases of leaders, and let followers whose leader is gone take the lead.
-- KEYS: 1 leases
-- ARGV: 1 how the keys of flights begin  2 channel of the web process  3 seconds of a leader's lease
--       4… for each request its key in the cache, its id, and its deadline if it follows, or '' if it leads
-- Returns for each request 1 if it leads now, else 0
allow_out_of_memory(KEYS[1])
local clock, told = now(), {}
for i = 4, #ARGV, 3 do
  local flight = ARGV[1] .. ARGV[i]
  if ARGV[i + 2] ~= '' and redis.call('GET', ARGV[i + 1]) then
    told[#told + 1] = 0  -- the flight has landed, and its message was lost: the answer will be found
  elseif ARGV[i + 2] ~= '' then
    told[#told + 1] = math.max(0, board(flight, ARGV[i + 1], ARGV[i + 2], ARGV[2], ARGV[3], clock))
  elseif redis.call('HGET', flight, 'leader') == ARGV[i + 1] then
    redis.call('HSET', flight, 'until', string.format('%.6f', clock + ARGV[3]))
    told[#told + 1] = 1
  else
    told[#told + 1] = 0
  end
end
return told
