-- Delete a dead letter. The script finds the letter by its text, because its place in the list moves with each trim.
-- KEYS: 1 dead
-- ARGV: 1 the letter
-- Returns 1; or 0 when the letter has gone
return redis.call('LREM', KEYS[1], 1, ARGV[1])
