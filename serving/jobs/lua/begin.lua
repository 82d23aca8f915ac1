-- Note that a model server begins asynchronous jobs, which it has just taken, unless others have taken it for dead.
-- KEYS: 1 leases  2… asynchronous jobs
-- ARGV: 1 model server
-- Returns for each job 1 if it has ended already (canceled, or answered by a model server that was taken for dead),
-- else 0
allow_out_of_memory(KEYS[1])
local found = {}
local is_alive = lease_end(KEYS[1], ARGV[1]) > now()
for i = 2, #KEYS do
  local status = is_alive and set_status(KEYS[i], 'processing')
  found[i - 1] = ENDED[status or ''] and 1 or 0
end
return found
