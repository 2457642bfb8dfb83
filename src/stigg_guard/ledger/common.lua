-- What the steps of customers and of the queue have in common. A script is put together of one step and of the
-- paragraphs that it needs (see redis_scripts.py), so a definition has no blank line inside and stands after one.

local steps = {}

-- The ledger's clock in microseconds: the server's, or the one that is given.
local function present()
    local time = redis.call('TIME')
    return tonumber(time[1]) * 1000000 + tonumber(time[2])
end

local now = tonumber(ARGV[1]) or present()

-- A number as text of one width, so that texts are in the order of their numbers.
local function digits(number) return string.format('%016.0f', number) end
