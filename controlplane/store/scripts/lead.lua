-- Takes the lead of a topic, or keeps it, unless somebody else has it.
--
-- KEYS  1 leader (hash: owner)
-- ARGV  1 owner  2 ttl, ms
-- Returns {1 if the owner leads, keys repaired}.
--
-- Atomic, because looking and taking must not be parted by another router. Leading twice prolongs.
-- Complexity: O(1).

heal(KEYS[1], 'hash')
local leader = redis.call('HGET', KEYS[1], 'owner')
local left_ms = redis.call('PTTL', KEYS[1])
if left_ms ~= -2 and (not leader or left_ms < 0 or left_ms > LIFE_MAX) then
  -- Somebody who would lead for ever is nobody.
  discard(KEYS[1])
  leader = false
end
if leader and leader ~= ARGV[1] then
  return {0, repaired}
end
redis.call('HSET', KEYS[1], 'owner', ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return {1, repaired}
