"""Scripts on all that is in a space, and on who has something in a tenant."""

from typing import Final

from asgi_context.redis._scripts._script import HEAD, Script

# The names of those that are there, since a state may be evicted while its name is not. At one moment, however many.
# Where keys must be named (ARGV[2] is 'ask'), first nothing but all names, after ``{'name', ''}``. Then, told of their
# keys, a name that came since is as good as its state: that was made while this call was under way.
NAMES: Final = Script(
    HEAD
    + """
local base, how = ARGV[1], ARGV[2]
local named = {}
for at = 2, #KEYS do named[KEYS[at]] = true end
local names = {}
if how == 'ask' then names[1] = {'name', ''} end
for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. text(clock()), '+inf')) do
  local key = base .. name
  if name ~= '' and (how == 'ask' or (how == 'told' and not named[key]) or redis.call('EXISTS', key) == 1) then
    names[#names + 1] = name
  end
end
if how == 'ask' and #names == 1 then return {} end
return names
"""
)

# Remove up to a number of what is in an index: states, or counters and leases. To erase it, at first its mark goes too,
# and what is left instead for a while tells writers that have registered before to do so again. Only at first: who has
# done so since then stays registered, and must not be told by what an erasing has left that another was after. Where
# keys must be named, those that are: the answer has how many are gone, whether there are more, and which are to be
# named next.
CLEAR: Final = Script(
    HEAD
    + """
local index, base, erased, must_be_named, most = KEYS[1], ARGV[1], ARGV[2], ARGV[4] == 'named', 1001
if erased ~= '' then
  redis.call('ZREM', index, '') -- first, so that this goes on where memory is full
  redis.call('ZADD', index, erased, '\\255')
end
local removed, next_ones = 0, {}
local function remove(name)
  removed = removed + redis.call('UNLINK', base .. name)
  redis.call('ZREM', index, name)
end
for at = 2, #KEYS do remove(string.sub(KEYS[at], #base + 1)) end
local names = redis.call('ZRANGE', index, 0, most)
for _, name in ipairs(names) do
  if name ~= '' and name ~= '\\255' then
    if must_be_named then next_ones[#next_ones + 1] = name else remove(name) end
  end
end
local more = #next_ones > 0 or #names > most
if not more and redis.call('ZSCORE', index, '\\255') and redis.call('ZCARD', index) == 1 then
  redis.call('PEXPIREAT', index, text(clock() + tonumber(ARGV[3])))
end
return {removed, more and 1 or 0, unpack(next_ones)}
"""
)

# Note until when a user may have something in a tenant, each time by a score that was never there before: who erases
# takes only those out whom nobody has registered meanwhile. Finite ones for those without an end, too.
REGISTER: Final = Script(
    HEAD
    + """
local forever = 4000000000000000
local ends = math.min(moment(ARGV[2]), forever)
local known = redis.call('ZSCORE', KEYS[1], ARGV[1])
if known then ends = math.max(ends, moment(known)) end
redis.call('ZADD', KEYS[1], text(ends + tonumber(ARGV[3])), ARGV[1])
purge(KEYS[1], clock())
local last = moment(redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')[2])
if last >= forever then redis.call('PERSIST', KEYS[1]) else redis.call('PEXPIREAT', KEYS[1], text(last)) end
return 1
"""
)

# Take a user out whom nobody has registered since.
UNREGISTER: Final = Script(
    HEAD
    + """
local known = redis.call('ZSCORE', KEYS[1], ARGV[1])
if known and text(moment(known)) == ARGV[2] then return redis.call('ZREM', KEYS[1], ARGV[1]) end
return 0
"""
)
