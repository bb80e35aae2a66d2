"""Scripts on one state. Its key is the first, and that of the index of its space the second."""

from typing import Final

from asgi_context.redis._scripts._script import HEAD, Script

_WRITING: Final = """
local key, index, registered, name, version = KEYS[1], KEYS[2], ARGV[1], ARGV[2], ARGV[3]
local ttl, default, states = ARGV[4], ARGV[5], tonumber(ARGV[6])
local old = redis.call('HGET', key, '')
local ends
if not old or ttl ~= 'keep' then
  local now = clock()
  local lasts = ttl
  if ttl == 'keep' then lasts = default end
  ends = now + moment(lasts)
  local until_ = unregistered(index, now, ends, registered)
  if until_ then return until_ end
  local why = refused(index, now, not old, states)
  if why then return why end
elseif not redis.call('ZSCORE', index, name) then
  -- The index was evicted: what is in it comes back with the next write.
  local left = redis.call('PTTL', key)
  ends = math.huge
  if left >= 0 then ends = clock() + left end
  local until_ = unregistered(index, clock(), ends, registered)
  if until_ then return until_ end
end
"""

_SETTING: Final = """
local function set(first)
  local last = math.min(first + 999, #ARGV)
  redis.call('HSET', key, '', marked(version, old, ttl, default), unpack(ARGV, first, last))
  for at = last + 1, #ARGV, 1000 do
    redis.call('HSET', key, unpack(ARGV, at, math.min(at + 999, #ARGV)))
  end
end
"""


MERGE: Final = Script(
    HEAD
    + _WRITING
    + _SETTING
    + """
local most = tonumber(ARGV[7])
local has = 0
if old then has = redis.call('HLEN', key) - 1 end
if has + (#ARGV - 7) / 2 > most then
  for at = 8, #ARGV, 2 do
    if redis.call('HEXISTS', key, ARGV[at]) == 0 then has = has + 1 end
  end
  if has > most then return {{'limit', 'fields'}} end
end
set(8)
if ends then let_end(key, index, name, ends) end
return old and 0 or 1
"""
)

REPLACE: Final = Script(
    HEAD
    + _WRITING
    + _SETTING
    + """
if not ends and redis.call('PTTL', key) >= 0 then ends = clock() + redis.call('PTTL', key) end
redis.call('HSET', key, '', version) -- for want of memory this is refused, and what comes after a DEL is not
redis.call('DEL', key)
set(7)
if ends then let_end(key, index, name, ends) end
return old and 0 or 1
"""
)

REPLACE_VERSION: Final = Script(
    HEAD
    + """
if string.gsub(redis.call('HGET', KEYS[1], '') or '', 's$', '') ~= ARGV[7] then return {{'conflict', ''}} end
if #ARGV == 7 then
  redis.call('DEL', KEYS[1])
  redis.call('ZREM', KEYS[2], ARGV[2])
  return 1
end
"""
    + _WRITING
    + _SETTING
    + """
if not ends and redis.call('PTTL', key) >= 0 then ends = clock() + redis.call('PTTL', key) end
redis.call('HSET', key, '', version)
redis.call('DEL', key)
set(8)
if ends then let_end(key, index, name, ends) end
return 1
"""
)

INCREMENT: Final = Script(
    HEAD
    + """
local most, field, by = tonumber(ARGV[7]), ARGV[8], ARGV[9]
local held = redis.call('HGET', KEYS[1], field) or '0'
local function is_int(number) return string.match(number, '^%-?%d+$') end
if not (is_int(held) or string.match(held, '^%-?%d+%.%d+$') or string.match(held, '^%-?%d+[eE][+-]?%d+$')
    or string.match(held, '^%-?%d+%.%d+[eE][+-]?%d+$')) then return {{'number', 'type'}} end
local sum
if not (is_int(held) and is_int(by)) then
  -- IEEE doubles, in the shortest text that means the same one; HINCRBYFLOAT counts in long doubles.
  local total = tonumber(held) + tonumber(by)
  if total ~= total or total == math.huge or total == -math.huge then return {{'number', 'overflow'}} end
  for digits = 15, 17 do
    sum = string.format('%.' .. digits .. 'g', total)
    if tonumber(sum) == total then break end
  end
  if not string.find(sum, '[.e]') then sum = sum .. '.0' end
end
"""
    + _WRITING
    + """
if redis.call('HEXISTS', key, field) == 0 and old and redis.call('HLEN', key) > most then
  return {{'limit', 'fields'}}
end
if sum then
  redis.call('HSET', key, field, sum)
else
  local added = redis.pcall('HINCRBY', key, field, by)
  if type(added) == 'table' and added.err then
    local why = tostring(added.err)
    if string.find(why, 'overflow') or string.find(why, 'integer') then return {{'number', 'overflow'}} end
    return added
  end
end
redis.call('HSET', key, '', marked(version, old, ttl, default))
if ends then let_end(key, index, name, ends) end
return redis.call('HGET', key, field)
"""
)

REMOVE: Final = Script("""
redis.call('ZREM', KEYS[2], ARGV[1])
return redis.call('UNLINK', KEYS[1])
""")

REMOVE_FIELD: Final = Script("""
if redis.call('HDEL', KEYS[1], ARGV[2]) == 0 then return 0 end
local old = redis.call('HGET', KEYS[1], '') or ''
if redis.call('HLEN', KEYS[1]) > 1 then
  redis.call('HSET', KEYS[1], '', ARGV[3] .. string.match(old, 's?$'))
else
  redis.call('DEL', KEYS[1])
  redis.call('ZREM', KEYS[2], ARGV[1])
end
return 1
""")

TOUCH: Final = Script(
    HEAD
    + """
local old = redis.call('HGET', KEYS[1], '')
if not old then return 0 end
local now = clock()
local ends = now + moment(ARGV[3])
local until_ = unregistered(KEYS[2], now, ends, ARGV[1])
if until_ then return until_ end
let_end(KEYS[1], KEYS[2], ARGV[2], ends)
if string.sub(old, -1) == 's' then redis.call('HSET', KEYS[1], '', string.sub(old, 1, -2)) end
return 1
"""
)

# Reads, and sets anew a time to live that was the default and is half over; where that cannot be, it has been read.
READ_SLIDING: Final = Script(
    HEAD
    + """
local found
if #ARGV == 4 then found = redis.call('HGET', KEYS[1], ARGV[4]) else found = redis.call('HGETALL', KEYS[1]) end
local lasts = tonumber(ARGV[3])
local left = redis.call('PTTL', KEYS[1])
if left >= 0 and left < lasts / 2 and ARGV[1] ~= '-'
    and string.sub(redis.call('HGET', KEYS[1], '') or '', -1) == 's' then
  local told
  pcall(function()
    local now = clock()
    told = unregistered(KEYS[2], now, now + lasts, ARGV[1])
    if not told then let_end(KEYS[1], KEYS[2], ARGV[2], now + lasts) end
  end)
  if told then return told end
end
return found
"""
)
