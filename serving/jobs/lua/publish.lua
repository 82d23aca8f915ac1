-- Publish again what a model server serves, unless its lease ran out. The keys live on, and a Redis that was out of
-- memory, and threw them away, has them again.
-- KEYS: 1 leases  2 serves  3 served_last  4 the labels
-- ARGV: 1 model server  2 what it serves, JSON  3 its labels, JSON  4 seconds for which all of it is kept
if lease_end(KEYS[1], ARGV[1]) > now() then
  publish(KEYS[2], KEYS[3], KEYS[4], ARGV[1], ARGV[2], ARGV[3], ARGV[4])
end
