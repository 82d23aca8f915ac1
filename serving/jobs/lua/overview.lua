-- Tell an operator all that look.lua tells, and more, in one look.
-- KEYS: 1 to 9 as for look.lua  10 settled_total of lane bulk  11 dead  12 quiet
-- ARGV: 1 to 3 as for look.lua  4, 5 how the keys of all processing lists of lane people, and of lane bulk, begin
-- Returns {what look.lua returns, the beginning of the bulk job that waits longest or '', bulk jobs settled so far, dead
-- letters, and of each model server whose name is known, also of dead ones: its name, the seconds until its lease ends,
-- as text, jobs of people in its hands, of bulk, 1 if it is quiet else 0, what it serves, JSON, or '', …}
local clock, servers = now(), {}
local leases = redis.call('ZRANGEBYSCORE', KEYS[4], '-inf', '+inf', 'WITHSCORES')
for i = 1, #leases, 2 do
  local server = leases[i]
  for _, told in ipairs({
    server, string.format('%.3f', leases[i + 1] - clock),
    redis.call('LLEN', ARGV[4] .. server), redis.call('LLEN', ARGV[5] .. server),
    redis.call('HGET', KEYS[12], server) and 1 or 0, redis.call('HGET', KEYS[5], server) or '',
  }) do servers[#servers + 1] = told end
end
return {live_view(KEYS, ARGV, clock), oldest(KEYS[2], ARGV[3]), tonumber(redis.call('GET', KEYS[10]) or '0'),
  redis.call('LLEN', KEYS[11]), servers}
