-- Tell what is served.
-- KEYS: 1 leases  2 serves  3 served_last
-- Returns {what a model server that lives serves, what was served last}, each JSON, or '' for nothing
local clock = now()
local last = redis.call('GET', KEYS[3]) or ''
for _, server in ipairs(alive(KEYS[1], clock)) do
  local text = redis.call('HGET', KEYS[2], server)
  if text then return {text, last} end
end
return {'', last}
