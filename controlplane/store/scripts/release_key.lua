-- Ends the claim of an idempotency key; the key goes on standing for its request.
--
-- KEYS  1 claim (hash)
-- ARGV  1 owner  2 time the key still stands for its request, ms
-- Returns {1 if the claim was this owner's, keys repaired}.
--
-- Atomic, because another router may claim between comparing and releasing. Releasing twice finds
-- no owner and does nothing.
-- Complexity: O(1).

local claim = read_claim(KEYS[1])
if not claim or claim.owner ~= ARGV[1] then
  return {0, repaired}
end
redis.call('HDEL', KEYS[1], 'owner', 'until')
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return {1, repaired}
