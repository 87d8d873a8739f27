-- Withdraws a KV location.
--
-- KEYS  1 segment (string)  2 index of segments (zset)
-- ARGV  1 segment id
-- Returns {keys repaired}.
--
-- Atomic, so that the index names what is there. Dropping twice does nothing.
-- Complexity: O(log segments).

heal(KEYS[2], 'zset')
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[1])
return {repaired}
