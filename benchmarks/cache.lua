-- wrk: posts the bodies in turn and checks each answer; tells what came of it as a line of JSON.
-- wrk -t 1 ... -s cache.lua URL -- Content-Type -- body ... -- expected ...
-- A request names its body in X-Request-ID, which the answer brings back. An expected answer is a file, as a service
-- without a cache gave it: its labels must be the same, in the same order, and its first probability within 0.02.
local requests, labels, likeliest, turn, threads = {}, {}, {}, 0, {}
wrong, right, first_wrong = 0, 0, ""

local function read(name)
  local file = assert(io.open(name, "rb"))
  local text = file:read("*a")
  file:close()
  return text
end

local function told(body)
  local found = {}
  for label in body:gmatch('"label":"([^"]*)"') do found[#found + 1] = label end
  return table.concat(found, "|"), tonumber(body:match('"probability":([%d.e-]+)'))
end

function setup(thread)
  threads[#threads + 1] = thread
end

function init(args)
  local place = 3
  while args[place] ~= "--" do
    local headers = {["Content-Type"] = args[1], ["X-Request-ID"] = tostring(place - 2)}
    requests[#requests + 1] = wrk.format("POST", nil, headers, read(args[place]))
    place = place + 1
  end
  for i = place + 1, #args do
    local number = #labels + 1
    labels[number], likeliest[number] = told(read(args[i]))
  end
end

function request()
  turn = turn % #requests + 1
  return requests[turn]
end

function response(status, headers, body)
  local number = tonumber(headers["X-Request-ID"])
  local found, probability = told(body)
  if status == 200 and number and found == labels[number] and math.abs(probability - likeliest[number]) < 0.02 then
    right = right + 1
  else
    wrong = wrong + 1
    if first_wrong == "" then first_wrong = status .. " " .. body:sub(1, 200) end
  end
end

function done(summary, latency)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.timeout
  local thread = threads[1]
  if thread:get("wrong") > 0 then print("WRONG " .. thread:get("first_wrong")) end
  print(string.format(
    'RESULT {"right": %d, "wrong": %d, "failed": %d, "seconds": %f, "p50_ms": %f, "p99_ms": %f}', thread:get("right"),
    thread:get("wrong"), failed, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
