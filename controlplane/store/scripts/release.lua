-- Gives one reservation back at every place it was made.
--
-- KEYS  ledgers (zset) of the prefill worker, the decode worker and, if there is one, the link
-- ARGV  the reservation's member in each of KEYS
-- Returns {members removed, keys repaired}.
--
-- Atomic, so that no router sees half a reservation. Releasing twice, or what was never granted,
-- removes nothing.
-- Complexity: O(log reservations).

local removed = 0
for index, key in ipairs(KEYS) do
  if strike(key, ARGV[index]) then
    removed = removed + 1
  end
end
return {removed, repaired}
