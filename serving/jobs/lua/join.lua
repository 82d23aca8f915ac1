-- Register a model server, whose lease begins, and publish what it serves; or refuse it, because a model server that
-- lives serves something else on this queue.
-- KEYS: 1 leases  2 settled_by_server of lane people  3 … of lane bulk  4 serves  5 served_last  6 the labels  7 quiet
-- ARGV: 1 model server  2 lease in seconds  3 what it serves, JSON; '' publishes nothing  4 its labels, JSON
--       5 seconds for which all of it is kept, unless it is renewed  6 the name under which the same process had joined
--       before, or '': if that one was told to be quiet, this one is
-- Returns {Redis's clock in unix seconds, as text}; if refused also the other model server, what that serves, JSON, and
-- the seconds until its lease ends, as text
local SAME = {'name', 'width', 'height', 'channels', 'labels_digest'}
allow_out_of_memory(KEYS[1])
local clock = now()
local stamp = string.format('%.6f', clock)

local function differ(one, other)
  for _, field in ipairs(SAME) do
    if one[field] ~= other[field] then return true end
  end
  return false
end

if ARGV[3] ~= '' then
  local serves = cjson.decode(ARGV[3])
  for _, server in ipairs(alive(KEYS[1], clock)) do
    local text = redis.call('HGET', KEYS[4], server)  -- none: a model server that publishes nothing
    local is_json, other = pcall(cjson.decode, text or '')
    if is_json and type(other) == 'table' and differ(serves, other) then
      return {stamp, server, text, string.format('%.3f', lease_end(KEYS[1], server) - clock)}
    end
  end
  publish(KEYS[4], KEYS[5], KEYS[6], ARGV[1], ARGV[3], ARGV[4], ARGV[5])
end
redis.call('ZADD', KEYS[1], clock + ARGV[2], ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], 0)
redis.call('HSET', KEYS[3], ARGV[1], 0)
local quiet_since = redis.call('HGET', KEYS[7], ARGV[6])
if quiet_since then redis.call('HSET', KEYS[7], ARGV[1], quiet_since) end
-- Model servers of earlier releases know one lane. They forget the name of a dead one that may hold jobs of lane bulk.
-- (pcall: to users of Redis that were set up for them HKEYS is forbidden.)
for _, server in ipairs(redis.pcall('HKEYS', KEYS[3])) do
  if lease_end(KEYS[1], server) == 0 then redis.call('ZADD', KEYS[1], clock, server) end
end
return {stamp}
