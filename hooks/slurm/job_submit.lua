--[[
Refuses a wrong `pageferry:` text in AdminComment when the operator types it; any other update passes untouched.
The rules are those of pageferry/comment.py, which the agent reads the text by: a change is made in both.

Install it as /etc/slurm/job_submit.lua, with JobSubmitPlugins=lua in slurm.conf. A site that has its own
job_submit.lua copies this file beside it and writes at the top of its own, before its own functions,

    pcall(dofile, "/etc/slurm/pageferry.lua")

and in its slurm_job_submit and slurm_job_modify

    if pageferry_refuses ~= nil and pageferry_refuses(job_desc) then return 22 end

From Slurm 23.02 on the operator reads what is wrong. 22.05 has no way to say it: there the operator reads
"Invalid argument", and what is wrong is in slurmctld's log. Runs in slurmctld: nothing here may raise an error.
Lua 5.1 to 5.4.
--]]

local PREFIX = "pageferry:"
local BLANKS = " \t\r\n"
local MAX_REQUEST_BYTES = 1024
local MAX_NUMBER = { nodes = 1023, cpus = 8191 }
local MAX_MEMBERS = 65536
local SHOWN_BYTES = 60
local STRATEGIES = { relative = true, ["local"] = true, interleave = true, pack = true, weighted = true }
local STRATEGY_NAMES = "relative, local, interleave, pack, weighted"

-- EINVAL: Slurm prints the C library's words for it, which say more than slurm.ERROR's "Unspecified error".
local REFUSED = 22

local function shown(text)
	local line = string.gsub(text, "[^\032-\126]", "?")
	if #line > SHOWN_BYTES then
		return string.sub(line, 1, SHOWN_BYTES) .. "..."
	end
	return line
end

-- The pieces of a text between separators, of which there may be none.
local function split(text, separator)
	local pieces = {}
	for piece in string.gmatch(text .. separator, "([^" .. separator .. "]*)" .. separator) do
		pieces[#pieces + 1] = piece
	end
	return pieces
end

local function check_list(key, value, where)
	local said = where .. key .. "=" .. shown(value) .. ": "
	for _, part in ipairs(split(value, ",")) do
		local first, last = string.match(part, "^([0-9]+)%-([0-9]+)$")
		if first == nil then
			first = string.match(part, "^([0-9]+)$")
			last = first
		end
		if first == nil or #first > 9 or #last > 9 then
			return said .. "not a list of numbers"
		end
		local low, high = tonumber(first), tonumber(last)
		if high < low or high - low >= MAX_MEMBERS then
			return said .. "not a list of numbers"
		end
		if high > MAX_NUMBER[key] then
			return said .. high .. " is more than " .. MAX_NUMBER[key]
		end
	end
	return nil
end

local function check_wish(text, where)
	if text == "" then
		return where .. "nothing is asked for: nodes= is needed"
	end
	local values, key = {}, nil
	for _, word in ipairs(split(text, ",")) do
		local name, value = string.match(word, "^([^=]*)=(.*)$")
		if name == nil and word ~= "now" and key ~= nil and MAX_NUMBER[key] ~= nil then
			values[key] = values[key] .. "," .. word
		else
			if name == nil and word == "now" then
				name, value = word, ""
			elseif name == nil or (MAX_NUMBER[name] == nil and name ~= "strategy") then
				return where .. shown(word) .. ": not one of nodes=, cpus=, strategy=, now"
			end
			if values[name] ~= nil then
				return where .. name .. ": given twice"
			end
			key = name
			values[key] = value
		end
	end
	if values.nodes == nil then
		return where .. "nodes= is missing"
	end
	if values.strategy ~= nil and not STRATEGIES[values.strategy] then
		return where .. "strategy=" .. shown(values.strategy) .. ": not one of " .. STRATEGY_NAMES
	end
	local complaint = check_list("nodes", values.nodes, where)
	if complaint == nil and values.cpus ~= nil then
		complaint = check_list("cpus", values.cpus, where)
	end
	return complaint
end

local function check(text)
	-- slurmctld waits, and other people's texts have any length: no pattern with a repetition is used on them.
	local first, last = string.find(text, "[^" .. BLANKS .. "]"), #text
	if first == nil or string.sub(text, first, first + #PREFIX - 1) ~= PREFIX then
		return nil
	end
	while string.find(BLANKS, string.sub(text, last, last), 1, true) do
		last = last - 1
	end
	if last > MAX_REQUEST_BYTES then
		return "a request of more than " .. MAX_REQUEST_BYTES .. " bytes"
	end
	text = string.sub(text, first, last)
	local without_host, named = false, {}
	for _, part in ipairs(split(string.sub(text, #PREFIX + 1), ";")) do
		local host, wish = string.match(part, "^(.*):([^:]*)$")
		local where = ""
		if host == nil then
			if without_host then
				return "two parts without a host"
			end
			without_host, wish = true, part
		else
			if #host > 63 or string.match(host, "^[A-Za-z0-9][A-Za-z0-9._-]*$") == nil then
				return shown(host) .. ": not a host name"
			end
			if named[host] then
				return host .. ": named twice"
			end
			named[host], where = true, host .. ": "
		end
		local complaint = check_wish(wish, where)
		if complaint ~= nil then
			return complaint
		end
	end
	return nil
end

-- What is wrong with the text of an AdminComment; nil: nothing, or it is none of ours.
function pageferry_check(text)
	if type(text) ~= "string" then
		return nil
	end
	local sound, complaint = pcall(check, text)
	if sound then
		return complaint
	end
	return nil
end

-- Whether to refuse a job's submission or update; if so, the operator or the log has been told why.
function pageferry_refuses(job_desc)
	local sound, refused = pcall(function()
		local complaint = pageferry_check(job_desc.admin_comment)
		if complaint == nil then
			return false
		end
		local line = "pageferry: AdminComment: " .. complaint
		pcall(function() slurm.error(line) end)
		pcall(function() slurm.user_msg(line) end)
		return true
	end)
	return sound and refused
end

function slurm_job_submit(job_desc, _, _)
	if pageferry_refuses(job_desc) then
		return REFUSED
	end
	return slurm.SUCCESS
end

function slurm_job_modify(job_desc, _, _, _)
	if pageferry_refuses(job_desc) then
		return REFUSED
	end
	return slurm.SUCCESS
end

return slurm ~= nil and slurm.SUCCESS or 0
