-- Gives the lead of a topic up, so that another one need not wait for its end.
--
-- KEYS  1 leader (hash: owner)
-- ARGV  1 owner
-- Returns {1 if the owner led, keys repaired}.
--
-- Atomic, because another one may lead between comparing and giving up. Resigning twice does nothing.
-- Complexity: O(1).

heal(KEYS[1], 'hash')
if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[1] then
  return {0, repaired}
end
redis.call('DEL', KEYS[1])
return {1, repaired}
