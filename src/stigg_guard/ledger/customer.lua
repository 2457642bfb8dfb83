-- The steps on one customer's part. ARGV begins with the present time in microseconds (empty: the server's own) and, in
-- steps that leave something to send, with a token. Whoever may not go on with that token is told so by a number.

-- Nothing is queued for the customer as of this token: a step that queued it with this token or an older one must
-- queue it again, because the queue is about to forget it.
local function void(token)
    if customer then customer.void = math.max(customer.void, token) end
end

-- Why the step may not be made: -1 where the customer is not known here yet, or the token that it must exceed.
local function refusal()
    if not customer or customer.is_coming then return -1 end
    return tonumber(ARGV[2]) <= customer.void and customer.void
end

local function next_ticket()
    customer.ticket = customer.ticket + 1
    return customer.ticket
end

local function row_of(entry)
    return {
        entry.id, entry.state, entry.amount, entry.is_set and 1 or 0, entry.used_at, entry.event, entry.reason,
        entry.attempts, entry.dimensions, entry.period, entry.first_at, entry.ticket, entry.before,
    }
end

local function rows_of(entries)
    local rows = {}
    for i, entry in ipairs(entries) do rows[i] = row_of(entry) end
    return rows
end

-- name
function steps.known()
    local row = at('k', ARGV[2]).row
    if not row then return false end
    return {
        row.period, row.used, row.limit or '', row.seen, row.settled, row.settled_at or '', row.moved_at or '', row.added,
    }
end

-- name
function steps.outstanding()
    read({'c', 'k' .. ARGV[2]})
    if not customer then return 0 end
    reckon_holds()
    local sum = outstanding_of(at('k', ARGV[2]))
    write()
    return sum
end

local RANGES = {
    held = {'h'}, unsent = {'u', 'v'}, sending = {'s', 't'}, uncertain = {'w', 'x'}, dead = {'d'},
}

local function range_of(letter)
    if letter == 'h' then return 'h' .. digits(now + 1), 'i' end
    return letter, string.char(string.byte(letter) + 1)
end

-- limit, state...
function steps.list()
    local limit, rows = tonumber(ARGV[2]), {}
    for i = 3, #ARGV do
        for _, letter in ipairs(RANGES[ARGV[i]]) do
            local first, last = range_of(letter)
            local is_ordered = letter == 'u' or letter == 'v' or letter == 'd'
            local found = ids(first, last, is_ordered and limit or nil)
            if not is_ordered and letter ~= 'h' then table.sort(found) end
            for j = limit + 1, #found do found[j] = nil end
            if letter == 'h' then
                for _, part in ipairs(all_at('h', found)) do
                    table.insert(rows, {part.id, 'held', part.amount, part.taken_at, part.period})
                end
            else
                for _, entry in ipairs(all_at('e', found)) do table.insert(rows, row_of(entry)) end
            end
        end
    end
    return rows
end

-- token; the size of what is kept of the customer, and how much of it is in each state
function steps.count()
    local answer = {}
    read({'c'})
    if customer then forget_old_holds() end
    write()
    local kept = redis.call('ZCARD', INDEX)
    if kept == 0 then void(tonumber(ARGV[2])) end
    write()
    for _, letter in ipairs({'h', 'u', 'v', 's', 't', 'w', 'x', 'd'}) do
        local first, last = range_of(letter)
        table.insert(answer, redis.call('ZLEXCOUNT', INDEX, '[' .. first, '(' .. last))
    end
    return {kept, unpack(answer)}
end
