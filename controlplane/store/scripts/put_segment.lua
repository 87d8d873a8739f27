-- Publishes or renews a KV location for its lease.
--
-- KEYS  1 segment (string)  2 index of segments (zset)
-- ARGV  1 segment id  2 location, JSON  3 lease, ms  4 segments listed
-- Returns {keys repaired}.
--
-- Atomic, so that the index names what is there and expiry comes from one clock.
-- Complexity: O(log segments) + O(expired segments).

heal(KEYS[1], 'string')
local now = now_ms()
local lease_ms = tonumber(ARGV[3])
redis.call('SET', KEYS[1], ARGV[2], 'PX', lease_ms)
sweep(KEYS[2], now)
redis.call('ZADD', KEYS[2], now + lease_ms, ARGV[1])
-- Those that end first are not listed any more.
redis.call('ZREMRANGEBYRANK', KEYS[2], 0, -1 - tonumber(ARGV[4]))
keep(KEYS[2], lease_ms)
return {repaired}
