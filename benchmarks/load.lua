-- wrk: posts the bodies in turn, each a whole file made by load.py, and tells what came of it as a line of JSON.
-- wrk -t 1 ... -s load.lua URL -- Content-Type [Header=Value ...] -- body ...
-- sent_at: when each request was sent, seconds of the system's monotonic clock. A connection sends its next request
-- as soon as its last one was answered.
local ffi = require("ffi")
ffi.cdef("typedef struct { long seconds, nanoseconds; } moment; int clock_gettime(int clock, moment *now);")
local MONOTONIC, now = 1, ffi.new("moment")
local requests, turn, threads = {}, 0, {}
sent_at = {} -- global, so that done, which runs elsewhere, can ask for it

function setup(thread)
  threads[#threads + 1] = thread
end

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
  ffi.C.clock_gettime(MONOTONIC, now)
  sent_at[#sent_at + 1] = tonumber(now.seconds) + tonumber(now.nanoseconds) / 1e9
  turn = turn % #requests + 1
  return requests[turn]
end

function done(summary, latency)
  local errors, moments = summary.errors, {}
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  for place, moment in ipairs(threads[1]:get("sent_at")) do
    moments[place] = string.format("%.4f", moment)
  end
  print(string.format(
    'RESULT {"requests": %d, "failed": %d, "p50_ms": %f, "p99_ms": %f, "sent_at": [%s]}',
    summary.requests, failed, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, table.concat(moments, ",")))
end
