-- Removes a worker that says goodbye and tells the routers.
--
-- KEYS  1 worker (hash)  2 its inventory (hash)  3 its ledger (zset)
--       4 index of workers (zset)  5 events (stream)
-- ARGV  1 worker id  2 incarnation  3 events kept  4 ttl of events, ms
-- Returns {1 if it said goodbye, 0 if another incarnation lives there, keys repaired}.
--
-- Atomic, because a new incarnation may register between comparing and deleting. A worker the
-- store does not know says goodbye all the same: routers may still know it.
-- Complexity: O(inventory) + O(log workers).

heal(KEYS[1], 'hash')
heal(KEYS[4], 'zset')

local incarnation = redis.call('HGET', KEYS[1], 'incarnation')
if incarnation and incarnation ~= ARGV[2] then
  return {0, repaired}
end
redis.call('UNLINK', KEYS[1], KEYS[2], KEYS[3])
redis.call('ZREM', KEYS[4], ARGV[1])
append(KEYS[5], 'MAXLEN', '~', ARGV[3], '*', 'left', ARGV[1], 'incarnation', ARGV[2])
redis.call('PEXPIRE', KEYS[5], ARGV[4])
return {1, repaired}
