-- wrk: posts the bodies in turn, each a whole file made by bench.py, and tells what came of it as a line of JSON.
-- wrk ... -s load.lua URL -- Content-Type [Header=Value ...] -- body ...
local requests, turn = {}, 0

function init(args)
  local headers, place = {["Content-Type"] = args[1]}, 2
  while args[place] ~= "--" do
    local name, value = args[place]:match("^([^=]+)=(.*)$")
    headers[name] = value
    place = place + 1
  end
  for i = place + 1, #args do
    local file = assert(io.open(args[i], "rb"))
    requests[#requests + 1] = wrk.format("POST", nil, headers, file:read("*a"))
    file:close()
  end
end

function request()
  turn = turn % #requests + 1
  return requests[turn]
end

function done(summary, latency)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  print(string.format(
    'RESULT {"requests": %d, "failed": %d, "seconds": %f, "p50_ms": %f, "p99_ms": %f}',
    summary.requests, failed, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
